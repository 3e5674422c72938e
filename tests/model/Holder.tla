------------------------------- MODULE Holder -------------------------------
(***************************************************************************)
(* A branch on MariaDB. The session that prepared it finishes it; the      *)
(* coordinator takes over when that session does not. What the server      *)
(* answers is not always so:                                               *)
(*   - 1397 (unknown) while that session lives,                            *)
(*   - OK while that session is on its way out: InnoDB keeps the branch,   *)
(*     and nobody can name it before the server's restart (limbo).         *)
(*                                                                         *)
(* action here        code                                                 *)
(* ------------------ ---------------------------------------------------- *)
(* prepare            txcoord_client/_xa/branch.py prepare                 *)
(* vote               the vote on the reply: _carrying.py, or in Commit    *)
(* Commit, Rollback   core/machine.py: the decision                        *)
(* carry_out          txcoord_client/_keeping.py carry_out, _finished: by  *)
(*                    the decision, on the session that prepared           *)
(* HolderReported     core/settle.py reported                              *)
(* give_up            txcoord_client/_keeping.py: the session is let go    *)
(* session_invisible  the server: a session that ends leaves the process   *)
(*                    list before InnoDB lets go of it                     *)
(* session_gone       the server: now it has                               *)
(* end_holder         adapters/xa/mariadb_holder.py Holders.end, _holds,   *)
(*                    _kill                                                *)
(* guard              the same: its last wait                              *)
(* finish             adapters/xa/mariadb.py _finish_on: XA COMMIT or      *)
(*                    ROLLBACK on another session                          *)
(* judge              adapters/xa/mariadb.py _judge, _unknown,             *)
(*                    _rolled_back, _locked: the marker                    *)
(* restart            the server is killed, and starts again               *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Finishers,       \* nodes, or attempts of one, that work on the branch
    GuardIsEnough,   \* FALSE: InnoDB may take longer to let go than the guard waits
    MaxRestarts,
    Broken           \* rules that are broken on purpose; {} is the product

Broke(rule) == rule \in Broken

VARIABLES
    sess,      \* the session that prepares: "alive", "ending", "invisible", "gone"
    eng,       \* InnoDB: "active", "prepared", "committed", "rolledback"
    listed,    \* does XA RECOVER name it?
    voted,     \* a yes was heard
    dec,       \* the log's decision
    f,         \* each finisher: "idle", "ended", "guarded", "judging"
    reply,     \* what it was answered: "none", "OK", "1397"
    report,    \* what the holder says: "none", "committed", "rolledback", "released"
    ended,     \* the coordinator holds the branch for done
    alarm,     \* IN_LIMBO was said
    other,     \* a foreign session that got the id after a restart: "none", "alive", "killed"
    restarts

vars == <<sess, eng, listed, voted, dec, f, reply, report, ended, alarm, other, restarts>>

Init ==
    /\ sess = "alive" /\ eng = "active" /\ listed = FALSE
    /\ voted = FALSE /\ dec = "none"
    /\ f = [i \in Finishers |-> "idle"]
    /\ reply = [i \in Finishers |-> "none"]
    /\ report = "none"
    /\ ended = FALSE /\ alarm = FALSE
    /\ other = "none" /\ restarts = 0

Limbo == eng = "prepared" /\ ~listed

(* ---- the holder ---- *)

prepare ==
    /\ sess = "alive" /\ eng = "active"
    /\ eng' = "prepared" /\ listed' = TRUE
    /\ UNCHANGED <<sess, voted, dec, f, reply, report, ended, alarm, other, restarts>>

vote ==  \* On a reply, or in Commit's list.
    /\ eng = "prepared" /\ ~voted
    /\ voted' = TRUE
    /\ UNCHANGED <<sess, eng, listed, dec, f, reply, report, ended, alarm, other, restarts>>

Commit ==
    /\ dec = "none" /\ voted
    /\ dec' = "commit"
    /\ UNCHANGED <<sess, eng, listed, voted, f, reply, report, ended, alarm, other, restarts>>

Rollback ==
    /\ dec = "none"
    /\ dec' = "abort"
    /\ UNCHANGED <<sess, eng, listed, voted, f, reply, report, ended, alarm, other, restarts>>

carry_out ==  \* An OK on the session that prepared is a proof.
    /\ sess = "alive" /\ eng = "prepared" /\ listed
    /\ LET what == IF dec = "none" /\ Broke("holder_decides") THEN "abort" ELSE dec
       IN /\ what # "none"
          /\ eng' = IF what = "commit" THEN "committed" ELSE "rolledback"
          /\ report' = IF what = "commit" THEN "committed" ELSE "rolledback"
    /\ listed' = FALSE
    /\ UNCHANGED <<sess, voted, dec, f, reply, ended, alarm, other, restarts>>

HolderReported ==  \* Perhaps never heard, perhaps twice. Taken as proof only when it is what was decided.
    /\ report # "none" /\ dec # "none"
    /\ \/ report = "committed" /\ dec = "commit" /\ ended' = TRUE
       \/ report = "rolledback" /\ dec = "abort" /\ ended' = TRUE
       \/ report = "released" /\ Broke("released_is_done") /\ ended' = TRUE
    /\ UNCHANGED <<sess, eng, listed, voted, dec, f, reply, report, alarm, other, restarts>>

give_up ==  \* The process is killed, the connection breaks, or its pool closes it.
    /\ sess = "alive"
    /\ sess' = "ending"
    /\ report' = IF report = "none" THEN "released" ELSE report
    /\ UNCHANGED <<eng, listed, voted, dec, f, reply, ended, alarm, other, restarts>>

(* ---- the server ---- *)

session_invisible ==
    /\ sess = "ending"
    /\ sess' = "invisible"
    /\ UNCHANGED <<eng, listed, voted, dec, f, reply, report, ended, alarm, other, restarts>>

session_gone ==
    /\ sess = "invisible"
    /\ sess' = "gone"
    /\ eng' = IF eng = "active" THEN "rolledback" ELSE eng
    /\ UNCHANGED <<listed, voted, dec, f, reply, report, ended, alarm, other, restarts>>

restart ==  \* What is prepared is named again; ids of sessions begin anew.
    /\ restarts < MaxRestarts
    /\ restarts' = restarts + 1
    /\ sess' = "gone"
    /\ eng' = IF eng = "active" THEN "rolledback" ELSE eng
    /\ listed' = (eng = "prepared")
    /\ other' = IF other = "none" THEN "alive" ELSE other
    /\ UNCHANGED <<voted, dec, f, reply, report, ended, alarm>>

(* ---- the coordinator ---- *)

end_holder(i) ==  \* Nothing is ended that is not proven to hold the branch.
    /\ f[i] = "idle" /\ dec # "none" /\ ~ended
    /\ f' = [f EXCEPT ![i] = "ended"]
    /\ sess' = IF sess = "alive" THEN "ending" ELSE sess
    /\ other' = IF other = "alive" /\ Broke("kill_unproven") THEN "killed" ELSE other
    /\ UNCHANGED <<eng, listed, voted, dec, reply, report, ended, alarm, restarts>>

guard(i) ==  \* No more in the process list; and a wait.
    /\ f[i] = "ended"
    /\ sess \in {"invisible", "gone"}
    /\ (GuardIsEnough /\ ~Broke("no_guard")) => sess = "gone"
    /\ f' = [f EXCEPT ![i] = "guarded"]
    /\ UNCHANGED <<sess, eng, listed, voted, dec, reply, report, ended, alarm, other, restarts>>

finish(i) ==
    /\ f[i] = "guarded" \/ (f[i] = "idle" /\ Broke("holder_not_ended") /\ dec # "none" /\ ~ended)
    /\ f' = [f EXCEPT ![i] = "judging"]
    /\ \/ /\ listed /\ sess = "gone"
          /\ eng' = IF dec = "commit" THEN "committed" ELSE "rolledback"
          /\ listed' = FALSE
          /\ reply' = [reply EXCEPT ![i] = "OK"]
       \/ /\ listed /\ sess \in {"ending", "invisible"}  \* OK, and nothing of it is so.
          /\ listed' = FALSE
          /\ reply' = [reply EXCEPT ![i] = "OK"]
          /\ UNCHANGED eng
       \/ /\ ~listed \/ sess = "alive"
          /\ reply' = [reply EXCEPT ![i] = "1397"]
          /\ UNCHANGED <<eng, listed>>
    /\ UNCHANGED <<sess, voted, dec, report, ended, alarm, other, restarts>>

Believed(i) ==
    \/ Broke("ok_is_proof") /\ reply[i] = "OK"
    \/ Broke("unknown_is_done") /\ reply[i] = "1397"

judge(i) ==  \* The marker: there, its key free, or held by what is prepared still.
    /\ f[i] = "judging"
    /\ f' = [f EXCEPT ![i] = "idle"]
    /\ reply' = [reply EXCEPT ![i] = "none"]
    /\ ended' = (ended \/ Believed(i) \/ (IF dec = "commit" THEN eng = "committed" ELSE eng # "prepared"))
    /\ alarm' = (alarm \/ Limbo)  \* Locked, and not listed.
    /\ UNCHANGED <<sess, eng, listed, voted, dec, report, other, restarts>>

Next ==
    \/ prepare \/ vote \/ Commit \/ Rollback \/ carry_out \/ HolderReported \/ give_up
    \/ session_invisible \/ session_gone \/ restart
    \/ \E i \in Finishers : end_holder(i) \/ guard(i) \/ finish(i) \/ judge(i)

Spec == Init /\ [][Next]_vars

(* ---- what must hold ---- *)

ObeysTheLog ==
    /\ eng = "committed" => dec = "commit"
    /\ dec = "commit" => eng \in {"prepared", "committed"}

EndIsTrue ==  \* What ends as done is done; after an abort a PREPARE may still land, and is the scan's.
    /\ ended /\ dec = "commit" => eng = "committed"
    /\ ended => ~Limbo

NoLimbo == GuardIsEnough => ~Limbo

OtherUntouched == other # "killed"

(* Liveness: what is decided ends; a limbo too, once the server is started again. *)
Recovery ==
    /\ WF_vars(session_invisible) /\ WF_vars(session_gone)
    /\ \A i \in Finishers : WF_vars(end_holder(i)) /\ WF_vars(guard(i)) /\ WF_vars(finish(i)) /\ WF_vars(judge(i))

LiveSpec == Spec /\ Recovery
EndsOrIsSeen == (dec = "commit") ~> (ended \/ (Limbo /\ alarm))
=============================================================================
