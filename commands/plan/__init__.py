"""`pycni plan`: an ADD and its DEL for real, in namespaces that end with them."""
