-- Claims a task for a worker. Every later write must pass the token of the claim.
--
-- task          ns:{id}:task    hash        written when claimed
-- events        ns:{id}:events  stream      event `started` appended when claimed to run
-- open          ns:open         sorted set  id added with the current time
-- id
-- owner
-- tail          of the event `started`, or '' to append none; see append_event.lua
-- request       JSON, stored when the task has no record
-- deadline_s    seconds after submission, or ''
-- max_attempts
-- token         of this call, random; the fence, a number, would not do: a failover may lose a
--               claim, and the next one then gets the same number
-- lease_s
-- expires_at    Unix time after which the task must not start, or ''
-- queue         stored when the task has no record
-- max_bytes     longest outcome that is returned: Redis users of producers may write any, and
--               parsing takes many times that memory
-- Returns {'run' | 'cancelled' | 'expired' | 'overdue' | 'exhausted', fence, attempt,
--          submitted_at, now, checkpoint_step or 0, since, lost_owner},
--         {'ended', 0, attempt, status, outcome JSON} or {'held', 0, attempt, owner}.
--
-- While the lease of a running task lasts, a claim by any other message is answered `held`. When it
-- has expired, the owner counts as dead; its token is rejected in case it is not. It is the
-- lost_owner, and since is when it claimed; otherwise lost_owner is '', and since is when the task
-- was submitted, or at a later claim when it was requeued or, since then, last sent again, which is
-- its score in open. Both are missing where the same call is repeated.
local task, events, open = unpack(KEYS)
local id, owner, tail, request, deadline_s, max_attempts, token, lease_s, expires_at,
  queue, max_bytes = unpack(ARGV)
-- Fails for a key of another type before anything is written: then the message is requeued.
local since, lost_owner = redis.call('ZSCORE', open, id), ''
local status = redis.call('HGET', task, 'status')
local attempt = tonumber(redis.call('HGET', task, 'attempt') or '0')
if status and status ~= 'queued' and status ~= 'running' then
  local outcome = redis.call('HGET', task, 'outcome') or '{}'
  if #outcome > tonumber(max_bytes) then
    return redis.error_reply('ERR an outcome of ' .. #outcome .. ' bytes')
  end
  return {'ended', 0, attempt, status, outcome}
end
local now = now_s()
local lease_until = stamp(now + lease_s)
if status == 'running' and redis.call('HGET', task, 'token') == token then
  -- The same call again: its answer was lost.
  redis.call('HSET', task, 'lease_until', lease_until)
  local had = redis.call('HMGET', task, 'fence', 'submitted_at', 'started_at', 'answer', 'resumed')
  return {had[4], tonumber(had[1]), attempt, had[2], had[3], tonumber(had[5])}
end
if status == 'running' and tonumber(redis.call('HGET', task, 'lease_until') or '0') > now then
  return {'held', 0, attempt, redis.call('HGET', task, 'owner')}
end
if status == 'running' then
  local lost = redis.call('HMGET', task, 'started_at', 'owner')
  since, lost_owner = lost[1], lost[2]
end
if not status then
  redis.call('HSET', task, 'request', request, 'submitted_at', stamp(now), 'queue', queue)
  if deadline_s ~= '' then redis.call('HSET', task, 'deadline_at', stamp(now + deadline_s)) end
end
local submitted_at = redis.call('HGET', task, 'submitted_at')
local answer = 'run'
if redis.call('HGET', task, 'cancel_requested') then
  answer = 'cancelled'
elseif deadline_s ~= '' and now > submitted_at + deadline_s then
  answer = 'expired'
elseif expires_at ~= '' and now > tonumber(expires_at)
  and not redis.call('HGET', task, 'begun') then
  answer = 'overdue'
elseif attempt >= tonumber(max_attempts) then
  answer = 'exhausted'
else
  attempt = redis.call('HINCRBY', task, 'attempt', 1)
end
local fence = redis.call('HINCRBY', task, 'fence', 1)
local step = tonumber(redis.call('HGET', task, 'checkpoint_step') or '0')
redis.call('HSET', task, 'status', 'running', 'owner', owner, 'started_at', stamp(now),
  'lease_until', lease_until, 'token', token, 'answer', answer, 'resumed', step)
if answer == 'run' then redis.call('HSET', task, 'begun', 1) end
redis.call('ZADD', open, stamp(now), id)
if answer == 'run' and tail ~= '' then
  local resumed = '"resumed_from_step":' .. (step > 0 and step or 'null') .. ','
  append_event(task, events, resumed .. tail)
end
if fence == 1 then since = submitted_at end
return {answer, fence, attempt, submitted_at, stamp(now), step, since or submitted_at,
  lost_owner or ''}
