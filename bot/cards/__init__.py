"""Cards: messages that show the present state of a project, a request or a run."""
