"""Compare ways of training a network on several devices: every strategy is a plan, and one runtime
runs any plan."""
