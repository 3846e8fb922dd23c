"""The faces of Stoa on the web. Built on broker/ and projects/; holds no rules."""
