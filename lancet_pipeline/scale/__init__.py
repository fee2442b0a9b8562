"""Beyond one machine: passes and training on Ray, and what a run will cost, before it runs (docs/scaling.md)."""
