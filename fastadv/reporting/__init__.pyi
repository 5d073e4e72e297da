from fastadv.reporting.figures.bars import Bar as Bar, grouped_bars as grouped_bars
from fastadv.reporting.figures.palette import source_colors as source_colors
from fastadv.reporting.figures.pictures import (
    adversarial_examples as adversarial_examples,
    loss_gradients as loss_gradients,
)
from fastadv.reporting.figures.training import training_curves as training_curves
from fastadv.reporting.page.html import (
    Section as Section,
    Table as Table,
    write_report as write_report,
)
from fastadv.reporting.sections import report_sections as report_sections
from fastadv.text_tables import (
    format_percent_ci as format_percent_ci,
    text_table as text_table,
)
