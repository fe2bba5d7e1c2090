"""Studies run a network on many versions of a photo, or read its layers: the experiments of Zeiler & Fergus (2014)."""
