"""Training of a configured model: the job, its plan, the loop over epochs."""
