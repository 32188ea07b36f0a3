"""Low-rank adaptation: layers, attaching them to a network, structure tokens and heads."""
