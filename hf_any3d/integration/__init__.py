"""Auto classes, registration with transformers, and what is changed in PEFT and transformers."""
