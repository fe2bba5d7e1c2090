"""Makes the reports of benchmarks: findings with their limits, tables, the machine, and paired measurements."""
