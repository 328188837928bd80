"""Numbers produced by the upstream models, with weights that follow a formula."""
