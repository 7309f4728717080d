"""Whole data sets through an exported encoder: what is read, what one unit of work does, what the folder holds."""
