"""``python slurm/launch_grid.py``: grids of runs, here or on SLURM through submitit.

launch_grid                        the command
grid, site, settings_file          what a grid and a cluster are, as YAML
estimate, report, page             what runs will cost, what is shown
executors, job, jobs, submission   where runs execute, and the SLURM jobs that they are
doctor, prefetch, locks            is the cluster fit, downloads beforehand, one launcher at a time
"""
