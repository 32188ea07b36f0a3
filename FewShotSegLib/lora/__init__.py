"""Low-rank adaptation: LoRA layers, attaching them to a network, structure tokens and heads."""
