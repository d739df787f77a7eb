"""Pages that people look at: one self-contained HTML file each.

- run_report: report.html of a run; retrieval, matches, neighbors, stage_costs: its sections; comparison: what they show
- learning_curve: of any run, whether more data would help
- pair_report: report.html of a run on queries and documents; pair_searches, pair_charts: its sections and figures
- compression: bytes against quality
- duplicates: items side by side that are nearly the same, or out of place
- page, figures, charts: how pages look; failures: what becomes of a page that fails
- projector: vectors for TensorBoard
"""
