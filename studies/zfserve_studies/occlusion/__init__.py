"""Slides a square over photos (Zeiler & Fergus, figure 7): the study, its sentences, and its documents."""
