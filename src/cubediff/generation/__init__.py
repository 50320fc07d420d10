"""Generation with a trained pipeline: the jobs that are asked for, their execution and the files that they write."""
