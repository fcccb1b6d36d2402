"""What a run leaves behind, and the views of it: records, statistics, comparison, report, progress, tracker."""
