"""`zfserve top` shows what a service does at present, live in a terminal."""
