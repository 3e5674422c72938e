------------------------------- MODULE Enlist -------------------------------
(***************************************************************************)
(* Branches that enlist by themselves, against Commit, Rollback and the    *)
(* deadline: every change of the undecided row raises its version, and     *)
(* needs the version that was read. A change is formed by the row as a     *)
(* node has read it (perhaps long ago: its cache) and written later, so    *)
(* neither caches nor nodes need variables of their own.                   *)
(*                                                                         *)
(* action here        code                                                 *)
(* ------------------ ---------------------------------------------------- *)
(* Enlist             core/machine.py _enlist; engine Coordinator.enlist   *)
(* Vote               the same event, with the branch's vote               *)
(* Commit             core/machine.py _commit, _union, _says_more          *)
(* Rollback           core/machine.py _rollback                            *)
(* Rollback_unlogged  the same, sealed (design, Windows, rule 3)           *)
(* DeadlinePassed     core/machine.py _deadline                            *)
(* write              adapters/sql: INSERT, or AMEND with expected_version *)
(* prepare            txcoord_client/_xa/branch.py                         *)
(* prepare_fails      the same: its vote is no                             *)
(* reply_with_vote    txcoord_client/interceptors.py, asgi.py: the vote    *)
(*                    rides on the reply to the caller                     *)
(* give_up            the service was refused, and undoes its work         *)
(* finish             engine/phase_two.py, by the list of the row          *)
(* finish_late        engine/recovery.py, for what the list does not have  *)
(* tick               the log's clock: before the deadline, and after      *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Own,     \* branches of the initiator's process
    Remote,  \* branches that enlist by themselves
    Broken   \* rules that are broken on purpose; {} is the product

Branches == Own \cup Remote
Broke(rule) == rule \in Broken

VARIABLES
    late,    \* has the deadline passed?
    row,     \* [ver, dec, list]: ver 0 is no row; list says how each branch is entered
    p,       \* changes on their way: the row as it was read, or Idle
    ack,     \* what each service was told: "none", "in", "voted", "refused"
    db,      \* what each database has
    heard,   \* votes of yes that rode on replies
    noes,    \* votes of no that rode on replies
    sent,    \* the list of the first Commit; it is repeated as it is
    sdk,     \* "open", "committing", "sealed"
    told

vars == <<late, row, p, ack, db, heard, noes, sent, sdk, told>>

NoRow == [ver |-> 0, dec |-> "none", list |-> [b \in Branches |-> "no"]]
Idle == [ver |-> 99, dec |-> "none", list |-> [b \in Branches |-> "no"]]

Op(what, b) == <<what, b>>
Ops == {Op("enlist", b) : b \in Remote} \cup {Op("vote", b) : b \in Remote}
       \cup {Op(what, "-") : what \in {"commit", "rollback", "deadline"}}

Init ==
    /\ late = FALSE
    /\ row = NoRow
    /\ p = [o \in Ops |-> Idle]
    /\ ack = [b \in Remote |-> "none"]
    /\ db = [b \in Branches |-> "open"]
    /\ heard = {} /\ noes = {} /\ sent = {}
    /\ sdk = "open"
    /\ told = {}

Form(o) ==
    /\ p[o] = Idle
    /\ p' = [p EXCEPT ![o] = row]

(* ---- the services ---- *)

Decided(b) ==  \* Enlisting after the decision is refused; for sure only if it is no repetition (fresh).
    /\ row.dec # "none"
    /\ IF row.list[b] = "no" \/ Broke("refusal_of_repetition") THEN ack' = [ack EXCEPT ![b] = "refused"]
       ELSE UNCHANGED ack
    /\ UNCHANGED p

Enlist(b) ==  \* Also again, where the answer was lost.
    /\ ack[b] \in {"none", "in"}
    /\ \/ row.dec = "none" /\ row.list[b] # "no" /\ ack' = [ack EXCEPT ![b] = "in"] /\ UNCHANGED p
       \/ row.list[b] = "no" /\ (row.dec = "none" \/ Broke("enlist_after_decision")) /\ ~late
          /\ Form(Op("enlist", b)) /\ UNCHANGED ack
       \/ Decided(b)
    /\ UNCHANGED <<late, row, db, heard, noes, sent, sdk, told>>

prepare(b) ==  \* A service works once its enlisting was acknowledged.
    /\ db[b] = "open"
    /\ IF b \in Own THEN sdk = "open" ELSE ack[b] = "in"
    /\ db' = [db EXCEPT ![b] = "prepared"]
    /\ UNCHANGED <<late, row, p, ack, heard, noes, sent, sdk, told>>

prepare_fails(b) ==
    /\ db[b] = "open" /\ b \in Remote /\ ack[b] = "in"
    /\ db' = [db EXCEPT ![b] = "gone"]
    /\ UNCHANGED <<late, row, p, ack, heard, noes, sent, sdk, told>>

YesOf(b) == db[b] # "gone"

Vote(b) ==
    /\ ack[b] \in {"in", "voted"}
    /\ db[b] # "open"
    /\ \/ row.dec = "none" /\ row.list[b] \in {"ready", "refused"}
          /\ ack' = [ack EXCEPT ![b] = "voted"] /\ UNCHANGED p
       \/ row.dec = "none" /\ row.list[b] = "open" /\ ~late /\ Form(Op("vote", b)) /\ UNCHANGED ack
       \/ Decided(b)
    /\ UNCHANGED <<late, row, db, heard, noes, sent, sdk, told>>

reply_with_vote(b) ==  \* What was prepared may be rolled back by now; the reply was under way.
    /\ b \in Remote \ (heard \cup noes) /\ db[b] # "open" /\ ack[b] \in {"in", "voted"}
    /\ IF YesOf(b) THEN heard' = heard \cup {b} /\ UNCHANGED noes
       ELSE noes' = noes \cup {b} /\ UNCHANGED heard
    /\ UNCHANGED <<late, row, p, ack, db, sent, sdk, told>>

give_up(b) ==
    /\ b \in Remote /\ ack[b] = "refused"
    /\ db[b] \in {"open", "prepared"}
    /\ db' = [db EXCEPT ![b] = "gone"]
    /\ UNCHANGED <<late, row, p, ack, heard, noes, sent, sdk, told>>

(* ---- the initiator ---- *)

Answer ==
    IF row.dec = "abort" THEN told \cup {"ABORTED"} ELSE told \cup {"COMMITTING"}

Commit ==
    /\ sdk = "committing" \/ (sdk = "open" /\ noes = {} /\ \A b \in Own : db[b] = "prepared")
    /\ sdk' = "committing"
    /\ sent' = IF sdk = "open" THEN Own \cup heard ELSE sent
    /\ \/ row.dec # "none" /\ told' = Answer /\ UNCHANGED p
       \/ row.dec = "none" /\ Form(Op("commit", "-")) /\ UNCHANGED told
    /\ UNCHANGED <<late, row, ack, db, heard, noes>>

Rollback ==  \* Anybody, at any time, also after a Commit: it is an abort only if it is first.
    /\ sdk \in {"open", "committing"}
    /\ \/ row.dec # "none" /\ told' = Answer /\ UNCHANGED p
       \/ row.dec = "none" /\ Form(Op("rollback", "-")) /\ UNCHANGED told
    /\ UNCHANGED <<late, row, ack, db, heard, noes, sent, sdk>>

Rollback_unlogged ==  \* The initiator need not know that a branch has enlisted: the deadline aborts that row.
    /\ sdk = "open"
    /\ sdk' = "sealed"
    /\ told' = told \cup {"ABORTED"}
    /\ UNCHANGED <<late, row, p, ack, db, heard, noes, sent>>

(* ---- the log ---- *)

DeadlinePassed ==
    /\ late /\ row.ver > 0 /\ row.dec = "none"
    /\ Form(Op("deadline", "-"))
    /\ UNCHANGED <<late, row, ack, db, heard, noes, sent, sdk, told>>

Vouched(read, b) ==  \* The union of what enlisted and what Commit lists: of two reports a no outweighs a yes.
    LET known == IF Broke("list_of_the_caller_only") THEN "no" ELSE read.list[b]
    IN IF known = "refused" THEN "refused"
       ELSE IF b \in sent THEN "ready" ELSE known

Yes(read) ==
    /\ ~late
    /\ \A b \in Branches :
         Vouched(read, b) \in {"no", "ready"} \/ (Broke("vote_missing") /\ Vouched(read, b) = "open")

Changed(o, read) ==  \* The row as the change makes it. Only the branches that it touches are overwritten.
    CASE o[1] = "enlist" -> [row EXCEPT !.ver = @ + 1, !.list[o[2]] = "open"]
      [] o[1] = "vote" -> [row EXCEPT !.ver = @ + 1, !.list[o[2]] = IF YesOf(o[2]) THEN "ready" ELSE "refused"]
      [] o[1] = "commit" /\ Yes(read) ->
           [ver |-> row.ver + 1, dec |-> "commit",
            list |-> [b \in Branches |-> IF Vouched(read, b) # "no" THEN "finishing" ELSE row.list[b]]]
      [] OTHER ->
           [ver |-> row.ver + 1, dec |-> "abort",
            list |-> [b \in Branches |-> IF read.list[b] # "no" THEN "undoing" ELSE row.list[b]]]

write(o) ==
    /\ p[o] # Idle
    /\ p' = [p EXCEPT ![o] = Idle]
    /\ LET ok == /\ p[o].ver = row.ver \/ Broke("no_version")
                 /\ row.dec = "none" \/ (Broke("enlist_after_decision") /\ o[1] \in {"enlist", "vote"})
                 /\ o[1] \in {"enlist", "vote"} => ~late  \* Carried by the statement.
       IN IF ok
          THEN /\ row' = Changed(o, p[o])
               /\ \/ UNCHANGED <<told, ack>>  \* The reply is lost, or nobody waits for it.
                  \/ o[1] = "enlist" /\ ack' = [ack EXCEPT ![o[2]] = "in"] /\ UNCHANGED told
                  \/ o[1] = "vote" /\ ack' = [ack EXCEPT ![o[2]] = "voted"] /\ UNCHANGED told
          ELSE UNCHANGED <<row, told, ack>>  \* CONFLICT or TOO_LATE: read again.
    /\ UNCHANGED <<late, db, heard, noes, sent, sdk>>

(* ---- phase two ---- *)

finish(b) ==
    /\ row.dec # "none" /\ db[b] = "prepared"
    /\ row.list[b] \in {"finishing", "undoing"}
    /\ db' = [db EXCEPT ![b] = IF row.list[b] = "finishing" THEN "committed" ELSE "gone"]
    /\ UNCHANGED <<late, row, p, ack, heard, noes, sent, sdk, told>>

finish_late(b) ==
    /\ row.dec # "none" /\ db[b] = "prepared"
    /\ row.list[b] \notin {"finishing", "undoing"}
    /\ db' = [db EXCEPT ![b] = "gone"]
    /\ UNCHANGED <<late, row, p, ack, heard, noes, sent, sdk, told>>

tick ==
    /\ ~late /\ late' = TRUE
    /\ UNCHANGED <<row, p, ack, db, heard, noes, sent, sdk, told>>

Next ==
    \/ \E b \in Remote : Enlist(b) \/ prepare_fails(b) \/ Vote(b) \/ reply_with_vote(b) \/ give_up(b)
    \/ \E b \in Branches : prepare(b) \/ finish(b) \/ finish_late(b)
    \/ Commit \/ Rollback \/ Rollback_unlogged \/ DeadlinePassed
    \/ \E o \in Ops : write(o)
    \/ tick

Spec == Init /\ [][Next]_vars

(* ---- what must hold ---- *)

Committed == {b \in Branches : db[b] = "committed"}

Counted == Own \cup sent \cup {b \in Remote : ack[b] \in {"in", "voted"}}  \* who may rely on being part of it

Atomic == Committed # {} => \A b \in Counted : db[b] \in {"prepared", "committed"}

AckHolds == row.dec # "none" => \A b \in Remote : ack[b] \in {"in", "voted"} => row.list[b] # "no"

NobodyLeftBehind == row.dec = "commit" => \A b \in Branches : row.list[b] \in {"no", "finishing"}

ToldTheTruth ==
    /\ "COMMITTING" \in told => row.dec = "commit"
    /\ "ABORTED" \in told => row.dec # "commit" /\ Committed = {}

DecisionImmutable == [][row.dec # "none" => row'.dec = row.dec]_vars
=============================================================================
