"""From images and prompts to masks: predictors, whole volumes, support sets, sliding windows, quality flags."""
