"""The ranks: started and ended by their parent, each with its place in the parallel layout."""
