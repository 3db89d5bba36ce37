"""Each case of serving and its tests, and a check that each of them exists.

The numbers are those of the list of fault cases; what is expected stands beside them. A test that proves a
case usually stands with the tests of its own part, where it is found by its name; this table says where.
"""

import ast

import pytest

CASES = {
    31: (
        "Redis down, slow, full, flushed, wrong or poisoned: same answers, bounded latency, counted",
        "serve/test_redis.py::test_redis_away_at_refresh",
        "serve/test_redis.py::test_redis_killed_midway_changes_no_answer_and_little_time",
        "serve/test_redis.py::test_redis_that_accepts_and_never_answers_is_given_up_on",
        "serve/test_redis.py::test_a_table_in_redis_is_not_trusted_without_proof",
        "faults/test_serving_faults.py::test_case_31_a_redis_that_forgets_or_is_full_changes_no_answer",
        "access/test_limits.py::test_whatever_redis_holds_requests_go_on",
        "access/test_limits.py::test_a_silent_redis_delays_no_request",
    ),
    32: (
        "Redis holds an older model or snapshot: the key has the versions",
        "serve/test_redis.py::test_an_older_table_is_not_taken",
        "serve/test_redis.py::test_a_table_in_redis_is_not_trusted_without_proof",
        "predict/test_table.py::test_key_holds_model_snapshot_and_content",
        "predict/test_table.py::test_a_new_model_and_new_bars_each_change_the_key",
    ),
    33: (
        "Stampede on something cold: one computation for all who wait",
        "serve/test_reads.py::test_whole_tables_are_rendered_once",
        "predict/test_time_travel.py::test_a_few_reconstructions_wait_and_more_are_turned_away",
        "predict/test_engine.py::test_a_batch_is_what_was_waiting",
    ),
    34: (
        "Model file corrupt, cut, of another hash or signature: refused, the old one stays, alarm",
        "faults/test_artifact.py::test_a_flipped_bit",
        "faults/test_artifact.py::test_truncated_or_garbage",
        "faults/test_artifact.py::test_the_signature_of_another_key",
        "predict/test_engine.py::test_the_last_good_model_stays_when_a_new_one_is_refused",
        "serve/test_app.py::test_a_refused_champion_is_flagged_and_the_old_answers_stay",
    ),
    35: (
        "Pointer to an unknown, foreign or unsigned version, or no registry: refused, the last one serves",
        "predict/test_engine.py::test_a_pointer_that_is_not_ours_is_refused",
        "predict/test_engine.py::test_an_unknown_artifact_is_refused",
        "faults/test_evidence.py::test_an_edited_pointer_is_refused_by_every_reader",
        "serve/test_app.py::test_a_moved_pointer_heals_by_itself",
        "serve/test_app.py::test_a_lost_lake_and_registry_do_not_reach_stored_answers",
    ),
    36: (
        "Pickles and foreign loaders in an artifact: never deserialised",
        "faults/test_artifact.py::test_an_extra_file",
        "faults/test_artifact.py::test_paths_in_the_manifest",
        "faults/test_artifact.py::test_a_pickle_under_another_name_even_signed",
        "faults/test_artifact.py::test_an_old_pickle_is_not_executed_either",
        "faults/test_artifact.py::test_links",
    ),
    37: (
        "Features or weights of another order, count or type than the model: refused",
        "faults/test_artifact.py::test_features_in_another_order",
        "faults/test_artifact.py::test_one_feature_fewer_than_weights",
        "faults/test_artifact.py::test_weights_of_the_wrong_shape_or_absent",
        "faults/test_artifact.py::test_weights_of_another_type",
        "faults/test_artifact.py::test_features_computed_by_other_code",
    ),
    38: (
        "A model that gives no number: 503 with a code, counted",
        "serve/test_app.py::test_a_model_that_gives_nonsense_is_a_counted_503",
        "predict/test_engine.py::test_a_number_that_is_not_finite_is_an_error",
        "predict/test_what_if.py::test_a_series_that_breaks_the_model_fails_alone",
    ),
    39: (
        "GPU absent, lost or full: the same result on the CPU",
        "predict/test_engine.py::test_without_its_gpu_the_engine_computes_on_the_cpu",
        "predict/test_engine.py::test_gpu_and_cpu_agree",
        "predict/test_engine.py::test_a_model_that_fails_is_a_refusal",
    ),
    40: (
        "Tokens of no or another algorithm, expired, foreign or huge: 401 of one shape",
        "access/test_logins.py::test_no_other_algorithm_is_accepted",
        "access/test_logins.py::test_the_public_key_is_no_shared_secret",
        "access/test_logins.py::test_wrong_claims_are_refused_although_they_are_signed",
        "access/test_logins.py::test_the_name_of_a_key_is_looked_up_and_nothing_else",
        "access/test_logins.py::test_a_huge_token_is_refused_without_being_parsed",
        "serve/test_access_routes.py::test_wrong_tokens_get_one_shape",
    ),
    41: (
        "A used refresh token again: its family is revoked",
        "access/test_logins.py::test_a_used_refresh_token_ends_its_session_and_the_access_tokens_with_it",
        "access/test_logins.py::test_one_of_many_exchanges_at_the_same_moment_succeeds_and_the_rest_end_the_session",
    ),
    42: (
        "Guessing, stuffing, enumeration and timing: slowed, the same time and text",
        "access/test_logins.py::test_a_guesser_is_slowed_and_the_owner_is_not_locked_out",
        "access/test_logins.py::test_many_names_from_one_address_and_an_own_account_do_not_help",
        "access/test_logins.py::test_the_same_work_for_every_name",
        "access/test_keys.py::test_every_stranger_costs_the_same_steps_and_gets_the_same_answer",
        "serve/test_access_routes.py::test_failed_logins_wait_and_say_how_long",
    ),
    43: (
        "Things of others, rights that were not given, fields that are not documented: 403, 404, 422",
        "serve/test_attacks.py::test_a_role_reaches_what_its_permissions_name_and_nothing_else",
        "serve/test_attacks.py::test_jobs_of_others_do_not_exist_for_a_viewer",
        "serve/test_attacks.py::test_nobody_gives_himself_rights_by_a_body_a_header_or_a_query",
        "serve/test_attacks.py::test_no_body_takes_a_name_that_is_not_documented",
    ),
    44: (
        "Limits with many callers and a clock that jumps; closed for logins, open for reads without Redis",
        "access/test_limits.py::test_no_minute_has_more_than_the_limit_and_the_named_wait_is_enough",
        "access/test_limits.py::test_processes_together_never_exceed_a_limit_but_by_their_first_contacts",
        "access/test_limits.py::test_all_callers_together_have_a_limit_and_zero_is_none",
        "access/test_logins.py::test_a_clock_that_jumps_and_an_old_login_are_handled",
        "access/test_logins.py::test_attempts_that_cannot_be_counted_are_refused",
        "faults/test_serving_faults.py::test_case_44_a_clock_that_jumps_opens_no_limit",
    ),
    45: (
        "Slow, silent, many and smuggled connections, floods of headers: deadlines and limits",
        "serve/test_wire.py::test_what_goes_beyond_a_limit_is_refused_with_its_status",
        "serve/test_wire.py::test_a_slow_body_ends_in_time",
        "serve/test_wire.py::test_a_silent_connection_is_closed_without_a_word",
        "serve/test_wire.py::test_a_request_that_can_be_read_in_two_ways_is_refused_once",
        "serve/test_wire.py::test_more_connections_than_the_limit_are_told_when_to_come_back",
        "serve/test_edge.py::test_a_request_in_a_request_does_not_pass_the_edge",
        "serve/test_edge.py::test_slow_clients_end_at_the_edge",
    ),
    46: (
        "Traversal, links and NUL in the name of a report or a model: 404, inside the root",
        "serve/test_app.py::test_reports_stay_in_their_folder",
        "serve/test_attacks.py::test_nothing_in_place_of_a_parameter_reads_a_file_or_runs",
        "serve/test_server.py::test_raw_paths_a_polite_client_would_not_send",
    ),
    47: (
        "Addresses that a caller names: private ranges refused, nothing contacted",
        "serve/test_attacks.py::test_no_address_that_a_caller_names_is_contacted_or_redirected_to",
        "alerts/test_delivery.py::test_a_private_address_is_refused_in_whatever_form_it_is_written",
        "alerts/test_delivery.py::test_a_redirect_is_not_followed",
    ),
    48: (
        "Log lines, CSV cells, HTML, SQL and terminals by a name from outside: escaped, strict policy",
        "serve/test_attacks.py::test_a_request_id_cannot_carry_anything_into_the_answer",
        "serve/test_reads.py::test_no_cell_of_a_table_is_a_formula",
        "access/test_audit.py::test_control_characters_and_line_ends_in_a_path_stay_inside_their_line",
        "ops/test_reports.py::test_every_fragment_escapes_what_it_is_given",
        "ops/test_reports.py::test_the_policy_stands_before_everything_and_allows_no_script",
        "flows/test_cli.py::test_a_ticker_that_attacks_does_nothing",
        "flows/test_cli.py::test_a_query_can_only_ask",
        "flows/test_cli.py::test_what_came_from_outside_cannot_act_on_the_terminal",
    ),
    49: (
        "Values for a run notebook: typed, never code, and no secret among them",
        "ops/test_runs.py::test_values_arrive_as_they_were_given_and_are_never_run",
        "ops/test_runs.py::test_what_does_not_fit_is_refused_before_anything_starts",
        "flows/test_pipeline.py::test_the_folder_keeps_settings_but_no_secret",
    ),
    52: (
        "Clock skew, a jump back, a leap second: steady clock for durations, calendar for sessions",
        "faults/test_serving_faults.py::test_case_52_an_hour_of_skew_moves_an_age_by_no_session_but_one_that_closes_in_it",
        "faults/test_serving_faults.py::test_case_52_a_clock_that_jumps_changes_no_duration",
    ),
    53: (
        "A scheduler that was down: the stated policy, nothing published twice",
        "flows/test_desk_flows.py::test_missed_sessions_follow_the_policy",
        "flows/test_desk_flows.py::test_a_story_that_fails_is_not_noted_as_done",
        "faults/test_registry.py::test_publishing_again_is_one_version",
        "flows/test_killed.py::test_killed_at_a_step_it_ends_in_the_same_place",
    ),
    54: (
        "Runs that overlap: one at a time, the second skipped with its reason",
        "flows/test_desk_flows.py::test_overlapping_runs_of_a_flow_never_happen",
        "flows/test_retrain.py::test_a_second_run_of_a_deployment_is_skipped_with_the_reason",
        "flows/test_pipeline.py::test_a_second_run_is_refused_by_name_and_a_dead_holder_is_no_obstacle",
    ),
    55: (
        "Prefect or MLflow away: trained and published all the same, recorded later",
        "flows/test_killed.py::test_without_its_server_a_run_goes_on_and_only_a_planner_stops",
        "faults/test_registry.py::test_without_mlflow_a_publication_is_pending_and_recorded_later",
        "faults/test_evidence.py::test_an_mlflow_that_refuses_is_pending",
    ),
    56: (
        "SIGTERM under load: drained, no 5xx",
        "serve/test_server.py::test_stopped_under_load_it_finishes_the_requests_under_way",
        "serve/test_workers.py::test_nothing_is_wrong_or_lost_while_models_and_processes_change",
        "serve/test_wire.py::test_a_connection_whose_answer_had_begun_does_not_hold_up_the_end",
    ),
    57: (
        "Settings absent, misspelt, unknown, or a secret in the repository: refused with all problems",
        "core/test_core.py::test_all_problems_of_all_places_come_together",
        "core/test_core.py::test_the_default_file_may_be_absent_but_a_named_one_may_not",
        "core/test_core.py::test_broken_files_are_refused_in_a_sentence",
        "faults/test_serving_faults.py::test_case_57_a_secret_in_the_settings_is_refused_and_not_repeated",
        "faults/test_serving_faults.py::test_case_57_no_file_of_the_repository_holds_a_secret",
    ),
    58: (
        "A channel that refuses, fails or is silent: tried again, no storm of duplicates",
        "alerts/test_delivery.py::test_a_channel_that_was_down_for_a_day_gets_everything_in_one_message",
        "alerts/test_delivery.py::test_killed_at_every_step_no_alert_is_lost_and_a_second_copy_has_the_same_id",
        "alerts/test_delivery.py::test_a_webhook_that_does_not_take_a_message_is_a_sentence",
    ),
    59: (
        "Drift alarms where nothing changed: at most the stated rate in a year",
        "watch/test_drift_alarm.py::test_quiet_years_ring_no_more_than_stated",
    ),
    60: (
        "An edited audit log: the chain breaks and says where",
        "access/test_audit.py::test_every_changed_byte_is_found_in_its_file_and_line",
        "access/test_audit.py::test_every_moved_line_is_found",
        "access/test_audit.py::test_every_cut_is_found",
        "access/test_audit.py::test_deleted_files_deleted_chains_and_deleted_notes_are_found",
    ),
}


def test_every_case_of_serving_is_in_the_table():
    assert list(CASES) == [*range(31, 50), *range(52, 61)]


@pytest.mark.parametrize("case", CASES)
def test_the_tests_of_a_case_exist(root, case):
    _, *tests = CASES[case]
    assert tests
    for place in tests:
        path, name = place.split("::")
        tree = ast.parse((root / "tests" / path).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in names, f"case {case}: {place} is gone"
