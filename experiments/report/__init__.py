"""Report pages: the demo's page, and the elements, chart and style that other pages share."""
