"""The names of the files in a workdir and in the folder of one run.

WORKDIR/sweep.json                the config, and the steps and multiply-adds of each arm
WORKDIR/report.md, .csv, .png     the report of the finished runs
WORKDIR/report/                   the same figure for TensorBoard
WORKDIR/tuning/                   the workdir of the runs that tune, if there are any
WORKDIR/tuning.md                 what they found
WORKDIR/slurm/                    the output of SLURM jobs
WORKDIR/ARM/SEED/                 the folder of one run
    config.json                   the resolved config
    environment.json              versions, commit and devices
    network.json                  what others need to use the network
    parameters.txt                a table of its parameters
    checkpoints/STEP/             the newest two checkpoints
    damaged/                      checkpoints that could not be read, and why
    metrics.jsonl                 one line of JSON per report
    events.out.tfevents.*         the same for TensorBoard
    result.json                   the test result; the run is finished
    failure.txt                   why the last attempt failed
    .lock                         held by the process that writes here (of a bucket: elsewhere)
"""

SWEEP = "sweep.json"
REPORT = "report"  # with .md, .csv or .png, and the folder for TensorBoard
TUNING = "tuning"  # with .md or .png, and the folder of the runs
SLURM = "slurm"
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
NETWORK = "network.json"
PARAMETERS = "parameters.txt"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"
METRICS = "metrics.jsonl"
RESULT = "result.json"
FAILURE = "failure.txt"
LOCK = ".lock"
