"""Training: data set, augmentation, recipe, loop, report. Called by `zfserve train` (`zfserve_model.train_command`)."""
