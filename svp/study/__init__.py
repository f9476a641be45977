"""Studies: one labelling campaign each, as a folder of plain files."""
