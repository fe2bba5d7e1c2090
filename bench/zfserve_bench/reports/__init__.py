"""What benchmarks report: findings with their limits, tables, the machine, and paired measurements."""
