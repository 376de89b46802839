"""What can be seen of this machine and its services. Each fact is looked up once and judged by nobody here."""
