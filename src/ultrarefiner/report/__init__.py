"""What people look at: figures, overlays and the report, one offline HTML file."""
