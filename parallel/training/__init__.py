"""Training a model as configured: the job, the plan that it runs, the loop over epochs."""
