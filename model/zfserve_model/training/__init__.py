"""Training: data set, augmentation, recipe, loop and report. `zfserve_model.train_command` calls it."""
