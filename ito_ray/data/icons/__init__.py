"""Demo data from real drawings: icon-font glyphs rendered as captioned pictures, offline."""
