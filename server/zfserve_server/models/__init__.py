"""Models: finding, opening, serving and replacing their versions."""
