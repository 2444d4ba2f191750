-- A worker asks for a task. Every later write carries the fence that this gives.
--
-- KEYS[1]  ns:{id}:task    hash        written when claimed
-- KEYS[2]  ns:{id}:events  stream      event `started` appended when claimed to run
-- KEYS[3]  ns:open         sorted set  id touched
-- ARGV     id, owner, event tail or '', request JSON, deadline seconds or '', most attempts,
--          1 when the message was delivered before, token of this call, tag of the message
-- gives    {'run' | 'cancelled' | 'expired' | 'exhausted', fence, attempt, submitted_at, now}
--          {'ended', 0, attempt, status, outcome JSON}  |  {'held', 0, attempt, owner, ''}
--
-- While a task is running, any message but the one that it was claimed with is a duplicate and is
-- told `held`. That one, delivered again, means that its owner lost it, so it takes over: the fence
-- shuts the old owner out.
local task, events, open = KEYS[1], KEYS[2], KEYS[3]
local id, owner, tail, request, deadline_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local status = redis.call('HGET', task, 'status')
local attempt = tonumber(redis.call('HGET', task, 'attempt') or '0')
if status and status ~= 'queued' and status ~= 'running' then
  return {'ended', 0, attempt, status, redis.call('HGET', task, 'outcome') or '{}'}
end
if status == 'running' and redis.call('HGET', task, 'token') == ARGV[8] then
  -- The same call again: its answer was lost on the way.
  local had = redis.call('HMGET', task, 'fence', 'submitted_at', 'started_at', 'answer')
  return {had[4] or 'run', tonumber(had[1]), attempt, had[2], had[3]}
end
local lost = ARGV[7] == '1' and redis.call('HGET', task, 'message') == ARGV[9]
if status == 'running' and not lost then
  return {'held', 0, attempt, redis.call('HGET', task, 'owner'), ''}
end
local now = string.format('%.6f', now_s())
if not status then
  redis.call('HSET', task, 'request', request, 'submitted_at', now)
end
redis.call('PERSIST', task)
local submitted = redis.call('HGET', task, 'submitted_at')
local answer = 'run'
if redis.call('HGET', task, 'cancel_requested') then
  answer = 'cancelled'
elseif deadline_s ~= '' and tonumber(now) > tonumber(submitted) + tonumber(deadline_s) then
  answer = 'expired'
elseif attempt >= tonumber(ARGV[6]) then
  answer = 'exhausted'
else
  attempt = redis.call('HINCRBY', task, 'attempt', 1)
end
local fence = redis.call('HINCRBY', task, 'fence', 1)
redis.call('HSET', task, 'status', 'running', 'owner', owner, 'started_at', now,
  'token', ARGV[8], 'message', ARGV[9], 'answer', answer)
redis.call('ZADD', open, now, id)
if answer == 'run' and tail ~= '' then append_event(task, events, tail) end
return {answer, fence, attempt, submitted, now}
