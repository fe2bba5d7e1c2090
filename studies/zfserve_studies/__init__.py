"""Does the experiments of Zeiler & Fergus (ECCV 2014) on a served network, and draws them."""
