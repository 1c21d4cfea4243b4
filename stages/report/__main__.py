from stages.report import main
from stages.run import cli

cli.run(main)
