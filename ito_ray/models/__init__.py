"""The two towers, the dual encoder that ships, and the fusion module that does not."""
