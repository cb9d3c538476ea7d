_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)
runner_type = 'focal_mm.DurableRunner'  # goes on after interruptions, see docs/runs.md
custom_hooks = [dict(type='focal_mm.ReportHook')]  # writes report.html, see docs/report.md
