"""Fine-tuning through real images, end to end: FT and LP-FT, supervised and FlexMatch.

`config` and `presets` hold settings and import no torch; `run.finetune` does the work;
`model.load_model` opens what it wrote.
"""
