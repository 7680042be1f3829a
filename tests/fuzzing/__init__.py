"""Changed copies of valid files, and readers that must read them or refuse them in a sentence."""
