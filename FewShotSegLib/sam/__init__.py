"""Everything that touches the SAM network. Importing this package alone loads nothing heavy."""
