"""Training samples made from a few exemplar slices: what is drawn, how it is pasted, how backgrounds are filled."""
