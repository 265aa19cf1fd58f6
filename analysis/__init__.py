"""From records to tables, figures, verdicts and the report. Rooms, in the order in which data walks through them:

``records`` > ``stats`` > ``findings`` > ``studies`` > ``tables`` > ``figures`` > ``claims`` > ``report``

No room asks one further on (a test looks). Beside the notebooks, which show all of it, lie the commands:
``python -m analysis.<name>`` of ``execute``, ``claims``, ``paper``, ``report``, ``pull``, ``cite``, ``dictionary``.
"""
