"""FLARE UDA: from labelled CT to unlabelled MR by translation, self-training, registration and filtering."""
