"""The main job: train a small GPT twice on real text, cut both, read and audit the modules, beside controls."""
