"""The panel: its sections and the widgets they share."""
