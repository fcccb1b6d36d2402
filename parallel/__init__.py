"""Compare ways of training one network on more than one device: every strategy is a plan, one runtime runs any plan."""
