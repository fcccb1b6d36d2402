"""Results of runs: records, statistics, comparison, validation, report, tracker."""
