-- Runs once, on an empty disk.
CREATE DATABASE lake;
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
