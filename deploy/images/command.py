#!/opt/venv/bin/python
"The command `stockpredict` of the images."

from stockpredict.cli.main import main

main()
